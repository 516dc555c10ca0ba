"""Telling the world outside: webhooks, and events that were missed."""
