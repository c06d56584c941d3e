"""Providers for verbs that work without a node."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runtime.config.load import Config
    from runtime.inference.catalogue import Catalogue
    from runtime.spi import ModelFamily
    from runtime.spi.hookspecs import PluginContext
    from runtime.spi.loader import Plugins


def plugin_context(settings: Config) -> PluginContext:
    """Return what plugins are told of the node."""
    from runtime.spi.hookspecs import PluginContext

    return PluginContext(node=settings.node.name, data_dir=settings.node.data_dir, model_paths=settings.models.path)


def make_families(settings: Config, plugins: Plugins) -> dict[str, ModelFamily]:
    """Make the model families that are configured, in their order."""
    context = plugin_context(settings)
    return {name: plugins.make("family", name, settings.plugin_settings, context) for name in settings.roles.families}


def make_catalogue(settings: Config, plugins: Plugins) -> Catalogue:
    """Make the catalogue over the sources that are configured."""
    from runtime.inference.catalogue import Catalogue

    context = plugin_context(settings)
    return Catalogue(
        {name: plugins.make("source", name, settings.plugin_settings, context) for name in settings.roles.sources}
    )
