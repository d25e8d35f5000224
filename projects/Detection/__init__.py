"""Train, evaluate and use the detectors; installed as `gnws_d2.projects.detection`."""
