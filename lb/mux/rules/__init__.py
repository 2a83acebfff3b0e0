# SPDX-License-Identifier: Apache-2.0
"""What a running MUX may be given: by a new file, and by a manager. Pure."""
