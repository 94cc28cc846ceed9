"""What is installed on devices: package files, their descriptions, who may see them."""
