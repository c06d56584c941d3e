"""Who is in the cluster, what each node's memory is promised to, and which model is served where."""

from runtime.cluster.changes import Changes
from runtime.cluster.detector import DetectorSettings, FailureDetector, PeerState
from runtime.cluster.lag import OwnLag
from runtime.cluster.ledger import LEDGER, Commit, Confirm, Ledger, Release, Reserve, Reserved, Settled
from runtime.cluster.membership import MEMBERSHIP, Membership
from runtime.cluster.node_info import NodeInfo, NodeProfile
from runtime.cluster.registry import REGISTRY, Registry
from runtime.cluster.reservations import Reservation, Reservations
from runtime.cluster.served import ServedModel, ServedModels, ServedStage, ServedState

__all__ = [
    "LEDGER",
    "MEMBERSHIP",
    "REGISTRY",
    "Changes",
    "Commit",
    "Confirm",
    "DetectorSettings",
    "FailureDetector",
    "Ledger",
    "Membership",
    "NodeInfo",
    "NodeProfile",
    "OwnLag",
    "PeerState",
    "Registry",
    "Release",
    "Reservation",
    "Reservations",
    "Reserve",
    "Reserved",
    "ServedModel",
    "ServedModels",
    "ServedStage",
    "ServedState",
    "Settled",
]
