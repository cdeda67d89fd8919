"""Facts that the detectors look up: surnames, characters of given names, divisions of China, words of context."""
