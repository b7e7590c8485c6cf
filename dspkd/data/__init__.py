"""Images, labels and lesions: sources, split, decode cache, random views, synthetic lesions."""
