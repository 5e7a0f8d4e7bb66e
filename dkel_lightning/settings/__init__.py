"""What the user may set, declared once and free of torch: type, range, meaning and default of every setting."""
