"""What a person does with a trained adapter."""
