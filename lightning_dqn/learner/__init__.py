"""What learns: networks, heads, target rules and the module that trains them. Knows nothing of environments."""
