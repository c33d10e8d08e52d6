"""What only a GPU can show: `pytest -m gpu tests/cuda` on a machine that has one."""
