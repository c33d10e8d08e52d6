"""What `dreamoving bench` measures: sizes, contenders, processes, sections, tables (docs/benchmarks.md)."""
