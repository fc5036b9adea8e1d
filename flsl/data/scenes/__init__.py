"""The made demo data: scenes of textured objects in the layouts of the real data sets."""
