"""What the course measures, and how; results are files with the machine that made them."""
