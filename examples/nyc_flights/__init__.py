"""The demo platform: will a departure from New York arrive more than 15 minutes late? All 336,776 flights of 2013."""
