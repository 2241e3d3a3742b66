"""Tests of fetching, reading, converting and finding weights; none touches a network."""
