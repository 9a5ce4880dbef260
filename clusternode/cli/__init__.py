"""The command line: one small module for each command, tables for people, JSON for programs."""
