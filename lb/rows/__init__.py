# SPDX-License-Identifier: Apache-2.0
"""Every row that operators see, defined once: its fields, their types and descriptions, and how tables show them.

A row is a ``msgspec.Struct``, one file for each kind. From its definition follow the JSON of ``-o json`` and of the
API, the OpenAPI description (:mod:`manager.api.openapi`), the tables of ``lb get`` (:mod:`lb.rows.table`) and the
columns of the web page (:mod:`manager.web.page_rows`). A new column is a new field here, with a
:class:`lb.rows.row.Column` beside it.
"""
