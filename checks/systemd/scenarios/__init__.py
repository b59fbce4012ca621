"""Scenarios on a real systemd: each test is one sentence of behaviour."""
