"""Recommenders to measure a model against: popularity, co-occurrence counts and SASRec, each with `scores(history)`."""
