"""What the runtime's own tests are made of, public so that a plugin's tests can use it too."""
