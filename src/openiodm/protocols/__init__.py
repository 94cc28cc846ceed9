"""What devices speak: one folder for each protocol, none knows another."""
