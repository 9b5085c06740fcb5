"""Ways out: to the Hub, and to the formats that other programs run."""
