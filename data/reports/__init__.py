"""What a dataset looks like, for people: funnel, card, contact sheets, status."""
