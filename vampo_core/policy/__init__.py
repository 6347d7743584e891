"""Robot policies: what every policy has, its data, training and controller, and a folder for each kind."""
