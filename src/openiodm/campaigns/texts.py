"""The sentences that end in an upgrade's detail, as the platform's FAQ documents them (contract section 6.4).

They are texts for people; no decision reads them. Whether an end counts as fail or timeout is the state's business.
"""

SAME_VERSION = "The current version is the same as the target version"
TASK_CONFLICT = "Task Conflict"
SOURCE_VERSION = "The current version is not in the package's source version list"
DEVICE_GONE = "The device is not existed"
ONLINE_TIMEOUT = "Waiting for the device online timeout"
DOWNLOAD_TIMEOUT = "Waiting for device downloaded package timeout"
RESULT_TIMEOUT = "Wait for the device to report upgrade result timeout"
VERIFY_TIMEOUT = "Updating timeout and query device version for check timeout"
UPDATE_FAILED = "Firmware update failed"
STOPPED = "Stopped by an operator"
WINDOW_OVER = "The time window of the task is over"
UPGRADED = "The device reports the target version"
UPGRADED_UNVERIFIED = "The device reports success; it tells no version"
