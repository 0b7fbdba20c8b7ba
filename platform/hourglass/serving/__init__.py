"""Endpoints: models behind FastAPI on Ray Serve, with every input bounded and validated."""
