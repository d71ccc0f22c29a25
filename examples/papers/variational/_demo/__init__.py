"""What demo.py measures, prints and draws."""
