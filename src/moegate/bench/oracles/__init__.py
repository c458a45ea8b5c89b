"""What must come out, in NumPy float64 or by counting, independent of everything that is measured."""
