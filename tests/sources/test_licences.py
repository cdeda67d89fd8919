"""Reading terms from the places where they stand."""

from __future__ import annotations

import pytest

from inhouse.sources.licences import (
    Reading,
    from_front_matter,
    from_metadata,
    from_text,
    licence_files,
    normal,
    read_licences,
    settle,
    use_of,
)


@pytest.mark.parametrize(
    ("name", "spdx"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("mit", "MIT"),
        ("Apache-2.0 OR MIT", "Apache-2.0 OR MIT"),
        ("llama3.2", "LicenseRef-llama3.2"),
        ("Some odd / terms!", "LicenseRef-Some-odd-terms"),
        ("LicenseRef-Mine", "LicenseRef-Mine"),
        ("!!!", "LicenseRef-unknown"),
    ],
)
def test_normal_name_of_terms(name, spdx):
    assert normal(name) == spdx


@pytest.mark.parametrize(
    ("text", "spdx"),
    [
        ("                 Apache License\n           Version 2.0, January 2004", "Apache-2.0"),
        ("MIT License\n\nPermission is hereby granted, free of charge, to any person", "MIT"),
        ("Redistribution and use in source and binary forms, ... Neither the name of", "BSD-3-Clause"),
        ("Redistribution and use in source and binary forms, ...", "BSD-2-Clause"),
        ("GNU Affero General Public License as published", "AGPL-3.0-or-later"),
        ("Creative Commons Attribution-NonCommercial 4.0 International", "CC-BY-NC-4.0"),
        ("Creative Commons Attribution 4.0 International", "CC-BY-4.0"),
        ("Qwen RESEARCH LICENSE AGREEMENT", "LicenseRef-Qwen-Research"),
        ("All rights reserved.", None),
    ],
)
def test_licence_text_is_recognised(text, spdx):
    assert from_text(text) == spdx


@pytest.mark.parametrize(
    ("readme", "spdx"),
    [
        ("---\nlicense: apache-2.0\nlanguage: [en]\n---\n# Model", "Apache-2.0"),
        ("---\nlicense: other\nlicense_name: qwen-research\n---\n", "LicenseRef-qwen-research"),
        ("---\nlicense: other\n---\n", "LicenseRef-other"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\n: : [\n---\n", None),
        ("---\n- a\n---\n", None),
        ("# Model", None),
    ],
)
def test_front_matter_of_a_model_card(readme, spdx):
    assert from_front_matter(readme) == spdx


@pytest.mark.parametrize(
    ("metadata", "spdx"),
    [
        ("License-Expression: MIT\nLicense: x\n", "MIT"),
        ("License: Apache-2.0\n", "Apache-2.0"),
        ("Classifier: License :: OSI Approved :: Apache Software License\n", "Apache-2.0"),
        ("Classifier: License :: OSI Approved :: Odd License\n", "LicenseRef-Odd-License"),
        ("Name: x\n", None),
    ],
)
def test_metadata_of_a_wheel(metadata, spdx):
    assert from_metadata(metadata) == spdx


@pytest.mark.parametrize(
    ("spdx", "use"),
    [
        ("Apache-2.0", "any"),
        ("CC-BY-NC-4.0", "research"),
        ("LicenseRef-Qwen-Research", "research"),
        ("AGPL-3.0-or-later", "any"),
        ("LGPL-2.1-only", "any"),
        ("GPL-2.0-only WITH Classpath-exception-2.0", "any"),
        ("CC-BY-NC-4.0 OR MIT", "any"),
        ("MIT AND Apache-2.0", "any"),
        ("MIT AND CC-BY-NC-4.0", "research"),
        ("MIT AND LicenseRef-x", "unknown"),
        ("(MIT AND LicenseRef-x) OR CC-BY-NC-4.0", "research"),
        ("MIT AND", "unknown"),
        ("LicenseRef-x", "unknown"),
    ],
)
def test_use_that_terms_allow(spdx, use):
    assert use_of(spdx) == use


def test_places_that_agree_share_a_record():
    (record,) = settle("m", [Reading("MIT", "LICENSE"), Reading("MIT", "README.md")], "https://x")
    assert (record.spdx, record.source, record.use, record.note) == ("MIT", "LICENSE, README.md", "any", None)


def test_copyleft_is_noted():
    (record,) = settle("m", [Reading("MIT OR GPL-3.0-only", "LICENSE")])
    assert record.use == "any" and record.note.startswith("copyleft")


def test_places_that_disagree_are_noted():
    first, second = settle("m", [Reading("MIT", "LICENSE"), Reading("CC-BY-NC-4.0", "README.md")])
    assert (first.use, second.use) == ("any", "research")
    assert first.note == "conflict, elsewhere CC-BY-NC-4.0: README.md"


def test_folder_names_its_terms_in_card_and_file(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "LICENSE.txt").write_text("Apache License, Version 2.0")
    (tmp_path / "COPYING").write_text("nothing known")
    assert read_licences(tmp_path) == [Reading("MIT", "README.md"), Reading("Apache-2.0", "LICENSE.txt")]
    assert [p.name for p in licence_files(tmp_path)] == ["COPYING", "LICENSE.txt"]


def test_licence_beside_a_lone_local_file_is_not_its_own(tmp_path):
    (tmp_path / "LICENSE").write_text("Apache License, Version 2.0")
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert read_licences(tmp_path / "a.gguf") == []
