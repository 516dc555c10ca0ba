"""Thin routes: parse, call one function, return a model."""
