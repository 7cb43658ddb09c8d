"""Test by experiment whether a mounted volume is safe to share."""

from sharedvol.doctor.examination import DoctorError, examine
from sharedvol.doctor.peer.meeting import PeerError
from sharedvol.doctor.peer.peer import meet
from sharedvol.doctor.report import Finding, Report, Verdict

__all__ = ["DoctorError", "Finding", "PeerError", "Report", "Verdict", "examine", "meet"]
