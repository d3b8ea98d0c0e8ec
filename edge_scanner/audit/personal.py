"""Personal data in metadata: by the name of a field, or by what its text looks like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

from edge_scanner.audit.finding import Finding

_FIELDS = re.compile(
    r"patient|experimenter|operator|physician|pathologist|technician|surname|(first|last|middle|full|user|host)_?name"
    r"|birth|\bdob\b|\bssn\b|\bmrn\b|accession|bar_?code|e_?mail|phone|address|institution|hospital"
    r"|\bcase_?(id|no|number)\b|artist|host_?computer|specimen_?id|label_?text",
    re.IGNORECASE,
)
_PATTERNS = {
    "email": re.compile(r"[\w.+-]+@[\w-]+\.[\w.]{2,}"),
    "path": re.compile(
        r"(?<![\w:/.<])/(?!(?:dev|run|proc|sys)/)[\w.~-]+/[\w.~-]+"
        r"|(?<!\w)[A-Za-z]:\\\w|\\\\[\w.-]+\\\w|file:///|(?<!\w)~/\w"
    ),
    "date_of_birth": re.compile(r"(?i:\b(born|birth|dob)\b)|\b\d{1,2}[./]\d{1,2}[./](19|20)\d\d\b"),
    "name": re.compile(
        r"\b(Mr|Mrs|Ms|Miss|Dr|Prof)\.?\s+[A-Z]\w+|(?i:\b(patient|name|operator)\s*[:=]\s*\w)"
        r"|\b[A-Z][a-z]+\^[A-Z]|(?i:\bpatient\b)"
    ),
    "id": re.compile(
        r"\b[A-Z]{1,3}\d{2}[-/]\d{3,}\b|\b\d{3}-\d{2}-\d{4}\b|(?i:\b(mrn|ssn|case|accession)\s*[:#=]?\s*[A-Z]?\d{3,})"
    ),
    "barcode": re.compile(r"(?<![\w.+-])(?!(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))\d{9,20}(?![\w.])"),
}
_FULL_NAME = re.compile(r"[A-Z][a-z]+[ ,_]+[A-Z][a-z]+$")
_PEOPLE = {"Experimenter", "ExperimenterGroup", "ExperimenterRef", "ExperimenterGroupRef", "Leader"}
_STRUCTURE = {"ID", "schemaLocation", "Namespace", "UUID", "Color"}


def personal(where: str, field: str, text: str) -> Finding | None:
    """Return the finding that a field's name or text gives rise to, None where it is harmless.

    Parameters
    ----------
    where : str
        Place, for the finding.
    field : str
        Name of the field; `image name` is that of a whole image, which may be a person's.
    text : str
    """
    if not text.strip():
        return None
    if _FIELDS.search(field):
        return Finding("error", "personal.field", where, f"The field {field} holds personal data.")
    if field == "image name" and _FULL_NAME.match(text):
        return Finding("error", "personal.name", where, "The image's name looks like a person's.")
    for kind, pattern in _PATTERNS.items():
        if pattern.search(text):
            return Finding("error", f"personal.{kind}", where, f"The text looks like personal data ({kind}).")
    return None


def in_json(where: str, document: Any, field: str = "") -> Iterator[Finding]:
    """Yield the personal data of parsed JSON."""
    if isinstance(document, dict):
        for name, value in document.items():
            yield from in_json(f"{where}.{name}", value, _json_field(field, name))
    elif isinstance(document, list):
        for number, value in enumerate(document):
            yield from in_json(f"{where}[{number}]", value, field)
    elif isinstance(document, str) and (finding := personal(where, field, document)):
        yield finding


def clean_json(document: Any, field: str = "") -> Any:
    """Return a copy of parsed JSON with the personal texts emptied."""
    if isinstance(document, dict):
        return {name: clean_json(value, _json_field(field, name)) for name, value in document.items()}
    if isinstance(document, list):
        return [clean_json(value, field) for value in document]
    return "" if isinstance(document, str) and personal("", field, document) else document


def in_xml(where: str, root: ET.Element) -> Iterator[Finding]:
    """Yield the personal data of OME-XML: elements that describe people, attributes and texts."""
    for element in root.iter():
        name = _local(element.tag)
        if name in _PEOPLE:
            yield Finding("error", "personal.field", f"{where}: {name}", f"OME-XML has an element {name}.")
            continue
        for place, field, text in _texts(element):
            if finding := personal(f"{where}: {name}{place}", field, text):
                yield finding


def clean_xml(root: ET.Element) -> None:
    """Remove the elements that describe people and empty the personal texts, in place."""
    for parent in root.iter():
        for child in [child for child in parent if _local(child.tag) in _PEOPLE]:
            parent.remove(child)
    for element in root.iter():
        for place, field, text in _texts(element):
            if personal("", field, text):
                if place:
                    element.set(next(key for key in element.attrib if _local(key) == place[1:]), "")
                else:
                    element.text = ""


def plain_xml(root: ET.Element) -> bytes:
    """Return a document of one namespace as UTF-8, the namespace without a prefix."""
    namespace = root.tag[1:].partition("}")[0]
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    root.set("xmlns", namespace)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text


def _texts(element: ET.Element) -> list[tuple[str, str, str]]:
    """Return (place, field, text) of an element's attributes and of its own text."""
    name = _local(element.tag)
    fields = {"Name": "image name"} if name == "Image" else {}
    found = [
        (f"@{_local(key)}", fields.get(key, key), text)
        for key, text in element.attrib.items()
        if _local(key) not in _STRUCTURE
    ]
    return [*found, ("", element.get("K", name), element.text or "")]


def _json_field(parent: str, name: str) -> str:
    return "image name" if name == "name" and parent in {"multiscales", "metadata"} else name


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
