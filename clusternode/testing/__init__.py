"""Doubles for the tests of users and for our own."""
