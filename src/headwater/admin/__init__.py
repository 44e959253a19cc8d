"""What an operator can change while the platform runs, through its socket, or when it doesn't, through its files."""
