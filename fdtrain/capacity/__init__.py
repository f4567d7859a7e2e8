"""What is known of a run before it exists: its layout, model, work and memory, and a first configuration."""
