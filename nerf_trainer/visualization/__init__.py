"""Pictures for people: videos, fly-arounds, colour maps, plots."""
