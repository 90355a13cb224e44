"""What layers and models offer to whoever trains, samples or diagnoses them, without knowing their class."""
