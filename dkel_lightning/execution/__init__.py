"""How training steps are executed: eagerly, compiled, or captured."""
