"""Machine annotation: images go in, regions come out, and every refusal is counted."""
