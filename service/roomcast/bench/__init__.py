"""`roomcast bench`: loads a deployment, and tells what its clients saw."""
