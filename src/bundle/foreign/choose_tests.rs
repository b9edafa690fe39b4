use proptest::prelude::*;

use super::*;

fn digest(content: &str) -> Digest {
    Digest::sha256(content.as_bytes())
}

fn image(content: &str, names: &[&str], shorts: &[&str]) -> Entry {
    let mut entry = Entry::new(digest(content));
    entry.names = names.iter().map(|name| (*name).to_owned()).collect();
    entry.shorts = shorts.iter().map(|short| (*short).to_owned()).collect();
    entry
}

fn kinded(entry: Entry, kind: &str) -> Entry {
    Entry {
        kind: Kind::of(kind),
        ..entry
    }
}

fn named(name: &str) -> Naming {
    Naming {
        name: Some(name.to_owned()),
        only: Vec::new(),
    }
}

fn only(only: &[&str], name: Option<&str>) -> Naming {
    Naming {
        name: name.map(str::to_owned),
        only: only.iter().map(|only| (*only).to_owned()).collect(),
    }
}

/// Names that are taken, each with the place of its entry, and what is left in words.
fn chosen(entries: &[Entry], naming: &Naming) -> (Vec<(usize, String)>, Vec<String>) {
    let choice = choose(entries, naming).unwrap();
    let reference = |at: usize, name: &Name| match &name.tag {
        Some(tag) => format!("{}:{tag}", name.repository),
        None => format!("{}@{}", name.repository, entries[at].digest),
    };
    let taken = choice.taken.iter().map(|(at, name)| (*at, reference(*at, name)));
    (taken.collect(), choice.left.iter().map(ToString::to_string).collect())
}

fn refused(entries: &[Entry], naming: &Naming) -> String {
    choose(entries, naming).unwrap_err().to_string()
}

#[test]
fn own_names_and_what_has_none() {
    // docker save NAME ID
    let entries = [
        image("a", &["docker.io/library/a:1", "docker.io/library/a:2"], &["1", "2"]),
        image("b", &[], &[]),
    ];
    let (taken, left) = chosen(&entries, &Naming::default());
    assert_eq!(
        taken,
        [
            (0, "docker.io/library/a:1".to_owned()),
            (0, "docker.io/library/a:2".to_owned())
        ]
    );
    let short = shown(&digest("b"));
    assert_eq!(
        left,
        [format!(
            "image {short}: the archive gives it no name (--only {short} --as NAME:TAG takes it)"
        )]
    );
    // As that says.
    let (taken, left) = chosen(&entries, &only(&[&short], Some("x.example/b:3")));
    assert_eq!((taken, left.len()), (vec![(1, "x.example/b:3".to_owned())], 0));
    // Without a tag each keeps its tags, and what has none its digest.
    let (taken, left) = chosen(&entries, &named("x.example/all"));
    let mut want = vec![
        (0, "x.example/all:1".to_owned()),
        (0, "x.example/all:2".to_owned()),
        (1, format!("x.example/all@{}", digest("b"))),
    ];
    want.sort_by_key(|(_, name)| name.replace('@', ":"));
    assert_eq!((taken, left.len()), (want, 0));
    let error = refused(&entries, &named("x.example/all:1"));
    assert!(
        error.contains("several images are inside") && error.contains("--only"),
        "{error}"
    );
}

#[test]
fn a_layout_that_needs_a_name() {
    let entries = [image("a", &[], &["3.22"])];
    let error = refused(&entries, &Naming::default());
    assert!(
        error.contains("3.22, image sha256:") && error.contains("(--as NAME:TAG takes it)"),
        "{error}"
    );
    assert_eq!(
        chosen(&entries, &named("x.example/b")).0,
        [(0, "x.example/b:3.22".to_owned())]
    );
    assert_eq!(
        chosen(&entries, &named("x.example/b:7")).0,
        [(0, "x.example/b:7".to_owned())]
    );
}

/// `docker save` and oras: one image with several tags keeps them all, alone or not.
#[test]
fn every_name_is_kept_or_named() {
    let tags = |taken: &[(usize, String)]| taken.iter().map(|(_, name)| name.clone()).collect::<Vec<_>>();
    let one = [image("a", &[], &["1", "2", "latest"])];
    let (taken, left) = chosen(&one, &named("x.example/b"));
    assert_eq!(tags(&taken), ["x.example/b:1", "x.example/b:2", "x.example/b:latest"]);
    assert!(left.is_empty(), "{left:?}");
    let one = [image("a", &["docker.io/team/app:1"], &["1"])];
    assert_eq!(tags(&chosen(&one, &named("ghcr.io/one")).0), ["ghcr.io/one:1"]);
    // A tag is kept also where the repository before it is none.
    let one = [image("a", &["x.example/Bad:1", "x.example/a"], &[])];
    assert_eq!(tags(&chosen(&one, &named("ghcr.io/one")).0), ["ghcr.io/one:1"]);
    for nameless in [image("a", &[], &[]), image("a", &["x.example/a"], &[])] {
        assert_eq!(
            tags(&chosen(&[nameless], &named("ghcr.io/one")).0),
            ["ghcr.io/one:latest"]
        );
    }
    // A short name that no full one covers is named.
    let digest = digest("a");
    let mixed = [image(
        "a",
        &["docker.io/h/dsh:1", &format!("docker.io/h/dsh:3@{digest}")],
        &["1", &format!("3@{digest}"), "dsh:1", "two"],
    )];
    let (taken, left) = chosen(&mixed, &Naming::default());
    assert_eq!(tags(&taken), ["docker.io/h/dsh:1", "docker.io/h/dsh:3"]);
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(
        left[0].starts_with("two, image") && left[0].ends_with("(--as NAME:TAG takes it)"),
        "{left:?}"
    );
    assert_eq!(
        tags(&chosen(&mixed, &named("x.example/b")).0),
        ["x.example/b:1", "x.example/b:3", "x.example/b:two"]
    );
    assert_eq!(
        tags(&chosen(&mixed, &only(&["two"], Some("x.example/b"))).0),
        ["x.example/b:two"]
    );
    // All names are in each message, and the one option that takes them all.
    let several = [image("a", &[], &["1", "2"]), image("b", &[], &["3"])];
    let error = refused(&several, &Naming::default());
    for word in ["1, image", "2, image", "3, image", "(--as NAME takes it)"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    assert_eq!(chosen(&several, &named("x.example/b")).0.len(), 3);
    assert!(refused(&several, &named("x.example/b:1")).ends_with("inside are 1, 2, 3"));
    assert!(refused(&several, &only(&["9"], None)).ends_with("it has 1, 2, 3"));
    let mut broken = image("b", &["x.example/b:1", "x.example/b:2"], &[]);
    broken.fault = Some("broken".to_owned());
    let (_, left) = chosen(&[image("a", &["x.example/a:1"], &[]), broken], &Naming::default());
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn a_name_selects_itself_and_a_digest_all_names() {
    let entries = [image("a", &["x.example/a:1", "x.example/a:2"], &["1", "2"])];
    for (means, names) in [
        (&["x.example/a:1"][..], &["x.example/a:1"][..]),
        (&["2"], &["x.example/a:2"]),
        (&["1", "x.example/a:2"], &["x.example/a:1", "x.example/a:2"]),
        (
            &[shown(&digest("a")).as_str(), "1"],
            &["x.example/a:1", "x.example/a:2"],
        ),
    ] {
        let (taken, left) = chosen(&entries, &only(means, None));
        let taken: Vec<String> = taken.into_iter().map(|(_, name)| name).collect();
        assert_eq!(
            (taken.iter().map(String::as_str).collect::<Vec<_>>(), left.len()),
            (names.to_vec(), 0),
            "{means:?}"
        );
    }
    let (taken, _) = chosen(&entries, &only(&["x.example/a:2"], Some("y.example/b")));
    assert_eq!(taken, [(0, "y.example/b:2".to_owned())]);
}

/// A signature bears its image's name: no option may make it that image.
#[test]
fn no_hint_makes_a_signature_the_image() {
    let signature = |content: &str| kinded(image(content, &["x.example/a:1"], &[]), "dev.cosignproject.cosign/sigs");
    // Alone, whatever is asked for.
    let alone = [
        signature("s"),
        kinded(image("o", &["x.example/a:1"], &[]), "dev.example/odd"),
    ];
    for naming in [Naming::default(), named("x.example/a:1"), named("x.example/a")] {
        let error = refused(&alone, &naming);
        assert!(
            !error.contains("several images") && error.contains("NAME:sha256-DIGEST.sig"),
            "{error}"
        );
    }
    let mut known = signature("s");
    known.signs = Some(digest("a"));
    let error = refused(&[known], &Naming::default());
    assert!(
        error.contains(&format!("--as NAME:sha256-{}.sig", digest("a").hex())),
        "{error}"
    );
    // Its image has no name that can be taken: naming that takes both.
    let mut signed = signature("s");
    signed.names = BTreeSet::new();
    signed.shorts = BTreeSet::from(["1".to_owned()]);
    let entries = [image("a", &[], &["1"]), signed];
    let error = refused(&entries, &Naming::default());
    assert!(error.contains("signature") && !error.contains("--only"), "{error}");
    assert_eq!(chosen(&entries, &named("x.example/a:1")).0.len(), 2);
    // By its digest alone it gets no name of its image.
    let entries = [image("a", &["x.example/a:1"], &[]), signature("s")];
    let error = refused(&entries, &only(&[&shown(&digest("s"))], None));
    assert!(error.contains("needs one of its own"), "{error}");
}

#[test]
fn names_by_digest() {
    let a = digest("a");
    let entries = [
        image(
            "a",
            &["docker.io/library/a:1", &format!("docker.io/library/a@{a}")],
            &["1"],
        ),
        image("b", &[&format!("docker.io/library/b:2@{a}")], &[]),
        image("c", &["docker.io/library/c"], &[]),
        image("d", &["docker.io/Library/d:1"], &[]),
    ];
    let (taken, left) = chosen(&entries, &Naming::default());
    assert_eq!(
        taken,
        [
            (0, "docker.io/library/a:1".to_owned()),
            (0, format!("docker.io/library/a@{a}"))
        ]
    );
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left[0].contains("another digest"), "{left:?}");
    assert!(
        left[1].contains("has no tag (--only ") && left[1].contains("--as docker.io/library/c:TAG"),
        "{left:?}"
    );
    assert!(left[2].contains("is no name for an image"), "{left:?}");
}

/// cosign and Hauler give a signature the name of its image.
#[test]
fn signatures_go_with_their_image() {
    let name = "index.docker.io/library/a:1";
    for (kind, ending) in [
        ("dev.cosignproject.cosign/sigs", ".sig"),
        ("dev.cosignproject.cosign/atts", ".att"),
        ("dev.hauler/sboms", ".sbom"),
        ("dev.hauler/sigs/0123abcd", ".sig"),
    ] {
        for is_first in [true, false] {
            let mut entries = vec![
                kinded(image("a", &[name], &[]), "dev.cosignproject.cosign/image"),
                kinded(image("s", &[name], &[]), kind),
            ];
            if is_first {
                entries.reverse();
            }
            let tag = format!("sha256-{}{ending}", digest("a").hex());
            let (mut taken, left) = chosen(&entries, &Naming::default());
            taken.sort_by_key(|(at, _)| (*at == 0) == is_first);
            let want = [
                (usize::from(is_first), "docker.io/library/a:1".to_owned()),
                (usize::from(!is_first), format!("docker.io/library/a:{tag}")),
            ];
            assert_eq!((taken.as_slice(), left.len()), (want.as_slice(), 0), "{kind}");
            let (mut taken, _) = chosen(&entries, &named("x.example/b:7"));
            taken.sort_by_key(|(at, _)| (*at == 0) == is_first);
            assert_eq!(taken[0].1, "x.example/b:7");
            assert_eq!(taken[1].1, format!("x.example/b:{tag}"));
        }
    }
}

#[test]
fn a_signature_of_one_platform_says_so() {
    let mut index = kinded(
        image("i", &["x.example/a:1"], &[]),
        "dev.cosignproject.cosign/imageIndex",
    );
    index.manifests.insert(digest("p"));
    let whole = kinded(image("s", &["x.example/a:1"], &[]), "dev.cosignproject.cosign/sigs");
    let mut part = kinded(image("t", &["x.example/a:1"], &[]), "dev.cosignproject.cosign/sigs");
    part.signs = Some(digest("p"));
    let (taken, left) = chosen(&[index, whole, part], &Naming::default());
    let names: BTreeSet<String> = taken.into_iter().map(|(_, name)| name).collect();
    let tag = |content: &str| format!("x.example/a:sha256-{}.sig", digest(content).hex());
    assert_eq!(names, BTreeSet::from(["x.example/a:1".to_owned(), tag("i"), tag("p")]));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_belongs_to_nothing_is_named() {
    let entries = [
        image("a", &["x.example/a:1"], &[]),
        kinded(image("s", &["x.example/b:1"], &[]), "dev.cosignproject.cosign/sigs"),
        kinded(image("o", &["x.example/a:1"], &[]), "dev.example/odd"),
        kinded(image("r", &["x.example/a:1"], &[]), "dev.hauler/referrers/0123"),
    ];
    let (taken, left) = chosen(&entries, &Naming::default());
    assert_eq!(taken, [(0, "x.example/a:1".to_owned())]);
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(
        left[0].contains("signature") && left[0].contains("is not in the archive"),
        "{left:?}"
    );
    assert!(left[1].contains("of kind \"dev.example/odd\""), "{left:?}");
    assert!(left[2].contains("referrer"), "{left:?}");
    // By its digest it is taken, under a name of its own.
    let (taken, left) = chosen(&entries, &only(&[&digest("o").to_string()], Some("x.example/odd:1")));
    assert_eq!((taken, left.len()), (vec![(2, "x.example/odd:1".to_owned())], 0));
}

#[test]
fn two_images_of_one_name() {
    let entries = [
        image("a", &["x.example/a:1"], &[]),
        image("b", &["x.example/a:1", "x.example/b:1"], &[]),
    ];
    let (taken, left) = chosen(&entries, &Naming::default());
    assert_eq!(taken, [(1, "x.example/b:1".to_owned())]);
    assert_eq!(left.len(), 2, "{left:?}");
    let option = format!("--only {} --as x.example/a:1 takes it", shown(&digest("a")));
    assert!(
        left[0].contains("another image of the archive has that name") && left[0].contains(&option),
        "{left:?}"
    );
    // oras lists the platforms of an index beside it: they come with it.
    let mut index = image("i", &[], &["1"]);
    index.manifests.insert(digest("p"));
    let entries = [index, image("p", &[], &[])];
    let (taken, left) = chosen(&entries, &named("x.example/a:1"));
    assert_eq!((taken, left.len()), (vec![(0, "x.example/a:1".to_owned())], 0));
    // So does what refers to one of them.
    let mut referrer = image("r", &[], &[]);
    referrer.subject = Some(digest("p"));
    let entries = [entries.to_vec(), vec![referrer]].concat();
    assert_eq!(chosen(&entries, &named("x.example/a:1")).0.len(), 1);
}

#[test]
fn what_is_faulty_keeps_nobody_else() {
    let mut broken = image("b", &["x.example/b:1"], &[]);
    broken.fault = Some("its manifest is not in the archive".to_owned());
    let entries = [image("a", &["x.example/a:1"], &[]), broken];
    let (taken, left) = chosen(&entries, &Naming::default());
    assert_eq!(taken.len(), 1);
    assert!(
        left[0].starts_with("x.example/b:1, image sha256:") && left[0].ends_with("not in the archive"),
        "{left:?}"
    );
    assert!(refused(&entries[1..], &Naming::default()).contains("not in the archive"));
}

#[test]
fn what_only_means() {
    let mut a = image("a", &["index.docker.io/library/a:1"], &["1"]);
    a.id = Some(digest("config"));
    let entries = [a, image("b", &["x.example/b:1"], &[])];
    let id = digest("config").hex();
    for means in [
        "a:1",
        "docker.io/library/a:1",
        "index.docker.io/library/a:1",
        "1",
        &id[..12],
        &format!("sha256:{}", &id[..8]),
        &digest("a").to_string(),
    ] {
        assert_eq!(
            chosen(&entries, &only(&[means], None)).0,
            [(0, "docker.io/library/a:1".to_owned())],
            "{means}"
        );
    }
    let error = refused(&entries, &only(&["c:1"], None));
    assert!(
        error.contains("has no image \"c:1\"") && error.contains("x.example/b:1"),
        "{error}"
    );
    // Five digits are a tag, or nothing.
    assert!(choose(&entries, &only(&[&id[..5]], None)).is_err());
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let name = prop::sample::select(vec![
        "x.example/a:1",
        "x.example/a:2",
        "x.example/b",
        "docker.io/c:1",
        "Bad:1",
        "x.example/a@sha256:0",
    ]);
    let kind = prop::sample::select(vec![
        "image",
        "dev.cosignproject.cosign/sigs",
        "d/referrers",
        "d/odd",
        "",
    ]);
    let one = (
        0..6u8,
        prop::collection::vec(name, 0..3),
        prop::option::of(prop::sample::select(vec!["1", "2"])),
        kind,
        0..6u8,
        prop::option::of(0..6u8),
        0..9u8,
    );
    prop::collection::vec(one, 1..6).prop_map(|all| {
        let content = |n: u8| format!("{n}");
        let made = all.into_iter().map(|(n, names, short, kind, child, subject, fault)| {
            let mut entry = kinded(image(&content(n), &names, short.as_slice()), kind);
            entry.manifests.insert(digest(&content(child)));
            entry.subject = subject.map(|n| digest(&content(n)));
            entry.fault = (fault == 0).then(|| "broken".to_owned());
            entry
        });
        // An archive lists each digest once here.
        let mut seen = BTreeSet::new();
        made.filter(|entry| seen.insert(entry.digest)).collect()
    })
}

proptest! {
    /// Whatever an archive lists: no name is given to two images, nothing broken is taken, no signature gets a name
    /// that the archive writes, and what is neither taken nor listed as left comes along with something that is.
    #[test]
    fn nothing_is_lost_in_silence(entries in entries(), name in prop::option::of(prop::sample::select(vec!["y.example/z", "y.example/z:5"]))) {
        let naming = Naming { name: name.map(str::to_owned), only: Vec::new() };
        let Ok(choice) = choose(&entries, &naming) else { return Ok(()) };
        prop_assert!(!choice.taken.is_empty());
        let mut owners = HashMap::new();
        for (at, name) in &choice.taken {
            let entry = &entries[*at];
            prop_assert!(entry.fault.is_none());
            let reference = name.tag.clone().unwrap_or_else(|| entry.digest.to_string());
            let owner = owners.insert((name.repository.clone(), reference.clone()), *at);
            prop_assert!(owner.is_none_or(|owner| owner == *at));
            if entry.kind != Kind::Image {
                prop_assert!(reference.starts_with("sha256-") && reference.ends_with(".sig"), "{reference}");
            }
        }
        let is_known = |digest: &Digest, but: usize| entries.iter().enumerate().any(|(at, entry)| at != but && entry.manifests.contains(digest));
        for (at, entry) in entries.iter().enumerate() {
            let is_taken = choice.taken.iter().any(|(taken, _)| *taken == at);
            let is_listed = choice.left.iter().any(|left| left.digest == entry.digest.to_string());
            let comes_along = is_known(&entry.digest, at) || entry.subject.is_some();
            prop_assert!(is_taken || is_listed || comes_along, "{entry:?}");
        }
    }
}
