"""`dspkd compare`: methods x teachers x students x seeds from one file, every cell an ordinary run, and the tables.

spec         the TOML file, checked
plan         the cells that follow from it
execution    cells carried out one by one, shared with other processes by a lock per cell
statistics   paired differences, their intervals, the share of the gap that a method closes
results      stored predictions of the finished cells -> every number of the tables
tables       these numbers as the paper's tables
output       Markdown, CSV, JSON and pictures
"""
