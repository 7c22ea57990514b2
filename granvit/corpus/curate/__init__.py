"""Which images and regions are worth training on: filters, balance, and what a curation writes."""
