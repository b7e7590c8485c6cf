"""The layouts of labelled images, one module each. `dspkd.data.sources.read_table` chooses."""
