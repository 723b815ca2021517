"""One line at a time: spelling, options and refusals of pip's requirements file format."""

from pathlib import Path

import pytest

from prefect_environments.core.errors import RequirementsError
from prefect_environments.core.formats.requirements import Requirements, parse

SHA_A = "sha256:" + "a" * 64
SHA_B = "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("numpy", "numpy"),
        ("Azure.AI_ML>=1.2.0", "azure-ai-ml>=1.2.0"),
        ("torch >= 2.7.1 ; sys_platform == 'linux'", 'torch>=2.7.1; sys_platform == "linux"'),
        ('name>=1.0;python_version<"3.9"', 'name>=1.0; python_version < "3.9"'),
        ("name[extra2,Extra_1]~=1.4", "name[extra-1,extra2]~=1.4"),
        ("name[]", "name"),
        ("pandas<3,>=1.5 , !=2.0", "pandas!=2.0,<3,>=1.5"),
        ("pandas (>=1.5,<3)", "pandas<3,>=1.5"),
        ("name==1.0-RC1", "name==1.0rc1"),
        ("name==v1.0,==1.0", "name==1.0"),
        ("torch==2.5.0+CU124", "torch==2.5.0+cu124"),
        ("pre-commit==2.*", "pre-commit==2.*"),
        ("name!=2.0.*", "name!=2.0.*"),
        ("name===1.0-Local", "name===1.0-local"),
        ("name==1;", "name==1"),
        (
            f"name==1.0 --hash={SHA_B} --hash={SHA_A.upper().replace('SHA', 'sha')}",
            f"name==1.0 --hash={SHA_A} --hash={SHA_B}",
        ),
        (f"name==1.0;os_name=='posix' --hash {SHA_A}", f'name==1.0; os_name == "posix" --hash={SHA_A}'),
        ("My_Pkg@https://host.example/p.tar.gz", "my-pkg @ https://host.example/p.tar.gz"),
        (
            "p[b,A] @ git+https://host.example/p@v1#subdirectory=x",
            "p[a,b] @ git+https://host.example/p@v1#subdirectory=x",
        ),
        ("p @ https://host.example/p.zip ; os_name=='nt'", 'p @ https://host.example/p.zip ; os_name == "nt"'),
        ("p @ https://host.example/p.zip; os_name=='nt'", 'p @ https://host.example/p.zip ; os_name == "nt"'),
        (
            "https://host.example/a/My_Pkg-1.0-py3-none-any.whl",
            "my-pkg @ https://host.example/a/My_Pkg-1.0-py3-none-any.whl",
        ),
        ("https://host.example/p-1.tar.gz", "https://host.example/p-1.tar.gz"),
        ("https://host.example/a;b/p-1.tar.gz", "https://host.example/a;b/p-1.tar.gz"),
        (
            "git+https://host.example/repo@ref#egg=My_Name&subdirectory=x",
            "git+https://host.example/repo@ref#egg=my-name&subdirectory=x",
        ),
        ("git+ssh://git@host.example/repo.git#egg=p[Z,a]", "git+ssh://git@host.example/repo.git#egg=p[a,z]"),
        ("file:///srv/a%20b/../p", "file:///srv/p"),
        ("file://localhost/srv/p.zip", "file:///srv/p.zip"),
        ("/srv/wheels/P_q-1.0-py3-none-any.whl", "p-q @ file:///srv/wheels/P_q-1.0-py3-none-any.whl"),
        ("//srv/../lib", "file:///lib"),
        ("/srv/project[Dev]", "file:///srv/project[dev]"),
        ("p @ /srv/project", "p @ file:///srv/project"),
    ],
)
def test_a_requirement_has_one_normal_spelling_and_reading_it_again_keeps_it(written: str, normal: str) -> None:
    assert parse([written]).packages == (normal,)
    assert parse([normal]).packages == (normal,)


def test_the_same_requirement_is_kept_once_and_different_markers_are_kept_apart() -> None:
    lines = [
        "T==2.14; python_version=='3.11'",
        "t == 2.14 ; python_version == '3.11'",
        "t==2.16; python_version!='3.11'",
    ]
    assert parse(lines).packages == ('t==2.14; python_version == "3.11"', 't==2.16; python_version != "3.11"')


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("name=={{latest-version}}", "template"),
        ("'name==1.0',", "Python list"),
        ("name=1.0", "single '='"),
        ("name>=1.*", r"'\.\*'"),
        ("name~=1", "two numbers"),
        ("name>=1.0 <2", "commas"),
        ("name 1.0", "joined by '=='"),
        ("name==", "version is missing"),
        ("name==latest", "PEP 440"),
        ("name=\u2265 1.0", "outside ASCII"),
        ("pip install name", "command"),
        ("name==1 \\ # no continuation", "very last character"),
        ("name: 1.0", "PEP 508"),
        ("name_", "PEP 508"),
        ("name_ @ https://host.example/p.zip", "package's name"),
        ("-name", "no such option"),
        ("name; python_version < ", "marker"),
        ("name; " + "(" * 5_000, "marker"),
        ("name==" + "1" * 5_000, "PEP 440"),
        ("name --hash=md5:00", "--hash"),
        ("--hash=" + SHA_A, "requirement's line"),
        ("name --pre", "line of its own"),
        ("name --extra-index-url https://host.example", "line of its own"),
        ("--pre name", "text behind the options"),
        ("--timeout 3", "no such option"),
        ("-i", "requires 1 argument"),
        ("-r 'open", "left open"),
        ("--no-binary name", "wheels only"),
        ("--no-binary :all:", "wheels only"),
        ("name --global-option=x", "wheels only"),
        ("name --install-option=x", "wheels only"),
        ("https://host.example/name.whl", "file name"),
        ("https:///name.zip", "no host"),
        ("https://[::1/name.zip", "malformed"),
        ("https://host.example:x/name.zip", "malformed"),
        ("https:host.example/name.zip", "no host"),
        ("https://host.example/{name}.zip", "percent-encode"),
        ("p @ https://host.example/p.zip;python_version=='3.9'", "space before"),
        ("ftp://host.example/p.zip", "scheme"),
        ("git+git@host.example:org/repo", "SSH address"),
        ("file://other.example/p.zip", "another host"),
        ("https://host.example/p#egg=p==1.0", "package's name"),
        ("./relative", "without a folder"),
        ("relative.whl", "without a folder"),
        ("-e .", "without a folder"),
        ("-r other.txt", "without a folder"),
        ("-c /srv/other.txt", "without a folder"),
        ("-i git+https://host.example/simple", "folder"),
        ("--only-binary a/b", "package's name"),
        ("na\x07me", r"U\+0007"),
        ("n\0a\0", "UTF-16"),
        ("na\ud800me", r"U\+D800"),
        ("x" * 100_001, "100,000 characters"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_with_its_place_and_reason(line: str, reason: str) -> None:
    with pytest.raises(RequirementsError, match=f"^form:2: cannot read .*{reason}"):
        parse(["# first", line], origin="form")


def test_options_keep_the_order_that_means_something() -> None:
    found = parse(
        [
            "--extra-index-url=https://b.example/simple -i https://first.example/simple --pre",
            "--extra-index-url https://a.example/simple",
            "-f https://host.example/links",
            "--find-links=https://host.example/earlier",
            "--index-url https://last.example/simple",
            "--extra-index https://b.example/simple",
        ]
    )
    assert found == Requirements(
        index_url="https://last.example/simple",
        extra_index_urls=("https://b.example/simple", "https://a.example/simple"),
        find_links=("https://host.example/links", "https://host.example/earlier"),
        pre=True,
    )


def test_no_index_outweighs_every_index_but_no_links() -> None:
    found = parse(["--no-index", "-i https://a.example", "--extra-index-url https://b.example", "-f /srv/wheels"])
    assert found == Requirements(no_index=True, find_links=("file:///srv/wheels",))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["--only-binary B_c,a", "--only-binary=d"], ("a", "b-c", "d")),
        (["--only-binary a", "--only-binary :all:", "--only-binary b"], (":all:",)),
        (["--only-binary :all:", "--only-binary :none:,b"], ("b",)),
        (["--no-binary :none:"], ()),
    ],
)
def test_only_binary_is_read_as_pip_reads_it(lines: list[str], expected: tuple[str, ...]) -> None:
    assert parse(lines).only_binary == expected


def test_one_hash_requires_hashes_of_all() -> None:
    assert parse([f"a==1 --hash={SHA_A}", "b"]).require_hashes
    assert parse(["--require-hashes"]).require_hashes
    assert not parse(["a==1"]).require_hashes


@pytest.mark.parametrize(
    "line",
    [
        "--trusted-host host.example",
        "--use-feature=fast-deps",
        "--prefer-binary",
        "name --config-settings editable_mode=compat",
        "-e git+https://host.example/r#egg=name",
    ],
)
def test_what_has_no_effect_on_an_image_is_noted_with_its_place_and_changes_nothing(line: str) -> None:
    found = parse([line], origin="form")
    assert [warning.partition(" ")[0] for warning in found.warnings] == ["form:1:"]
    assert found == parse([line.partition(" --config")[0].replace("-e ", "")] if "name" in line else [])


def test_an_editable_is_an_ordinary_reference_with_its_extras(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    found = parse(["-e ./project[Dev]", "--editable=project"], folder=tmp_path)
    assert found.packages == (f"{(tmp_path / 'project').as_uri()}", f"{(tmp_path / 'project').as_uri()}[dev]")
    assert len(found.warnings) == 2


@pytest.mark.parametrize(
    ("lines", "packages"),
    [
        (["a==1 \\", "  ; os_name=='posix'"], ('a==1; os_name == "posix"',)),
        (["a==\\", "1 # note"], ("a==1",)),
        (["a \\", "# a comment ends the line \\", "b"], ("a", "b")),
        (["a # the backslash joins, so the comment goes on \\", "b"], ("a",)),
        (["# a comment is not continued \\", "b"], ("b",)),
        (["a \\"], ("a",)),
        (["a#b @ x"], None),
        (["", "  ", "\t# only", "a\t# note"], ("a",)),
        (["a\nb\r\nc\rd", "e\n"], ("a", "b", "c", "d", "e")),
        (["\ufeffa"], ("a",)),
    ],
)
def test_comments_and_continuations_are_those_of_pip(lines: list[str], packages: tuple[str, ...] | None) -> None:
    if packages is None:
        with pytest.raises(RequirementsError):
            parse(lines)
    else:
        assert parse(lines).packages == packages


def test_a_continued_line_is_named_by_its_first_physical_line() -> None:
    with pytest.raises(RequirementsError, match=r"^requirements:2: cannot read 'b==  oops'"):
        parse(["a", "b== \\", " oops"])


def test_a_single_text_is_read_as_its_lines_not_as_letters() -> None:
    assert parse("numpy\npandas").packages == ("numpy", "pandas")


def test_an_item_that_is_not_text_is_refused() -> None:
    with pytest.raises(RequirementsError, match="item of type int"):
        parse(["a", 3])  # type: ignore[list-item]
