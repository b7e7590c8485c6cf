"""Measuring teacher and student side by side: complexity, latency, memory; and the report that shows it.

Measure -> JSON -> render. Nothing that renders measures.
"""
