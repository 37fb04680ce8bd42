"""What a failure means and what a person can do: a catalogue of codes, as data."""
