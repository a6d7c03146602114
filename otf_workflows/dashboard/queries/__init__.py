"""What the pages show, read from MongoDB with projections; nothing here writes."""
