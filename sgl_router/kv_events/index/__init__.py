"""Who holds which prefix: block keys, the table of holders, and how far a prompt is held."""
