"""The names of the mesh's axes, for whoever lays arrays out: training, and the WKV under a mesh."""

DATA_AXIS = "data"
