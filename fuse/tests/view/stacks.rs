//! Every small stack, with the kernel as the oracle.

use overstream_fuse::Format;
use overstream_testkit::Scratch;
use overstream_testkit::facts::{Tree, assert_same, read};

use super::facts::of_engine;
use super::frame::{Layers, with_scratch};
use super::made::{ALL, Made, PLAIN};

/// Makes layers in which each name is one of all the ways to choose `of` in every layer; returns the names.
fn all_stacks(layers: &Layers, count: usize, of: &[Made], format: Format) -> Vec<String> {
    let mut stacks: Vec<Vec<Made>> = vec![Vec::new()];
    for _ in 0..count {
        let longer = |stack: &Vec<Made>| {
            of.iter().map(|made| [stack.as_slice(), &[*made]].concat()).collect::<Vec<_>>()
        };
        stacks = stacks.iter().flat_map(longer).collect();
    }
    for layer in 0..count {
        let x = if format == Format::User { "user" } else { "trusted" };
        xattr::set(layers.dir(layer), format!("{x}.overlay.opaque"), b"x").unwrap();
    }
    let mut names = Vec::new();
    for stack in stacks {
        let name = stack.iter().map(|made| format!("{made:?}")).collect::<Vec<_>>().join("-");
        for (layer, made) in stack.iter().enumerate() {
            made.make(&layers.dir(layer).join(&name), layer, format);
        }
        names.push(name);
    }
    names
}

fn agrees(scratch: &Scratch, count: usize, of: &[Made], format: Format) {
    let layers = Layers::new(scratch, &format!("{count}-{format:?}"), count);
    let names = all_stacks(&layers, count, of, format);
    assert_eq!(names.len(), of.len().pow(u32::try_from(count).unwrap()));
    let kernel = read(layers.kernel(format).path(), &names);
    assert!(kernel.len() > names.len());
    assert_same(&kernel, &alike(of_engine(&layers.overlay(format), &names), count));
    // Twice, since the second time the kernel answers much of it from its caches.
    let served = layers.served(format);
    for _ in 0..2 {
        assert_same(&kernel, &alike(read(served.path(), &names), count));
    }
}

/// For one layer the kernel merges the root with an empty directory, so its links are not counted.
fn alike(mut tree: Tree, count: usize) -> Tree {
    if count == 1
        && let Some(Ok(root)) = tree.get_mut(std::path::Path::new(""))
    {
        root.links = 1;
    }
    tree
}

/// SEMANTICS O1, O2, O3, O5, O6, O7
#[test]
fn every_stack_of_one_layer_agrees_with_the_kernel() {
    with_scratch(|scratch| agrees(scratch, 1, &PLAIN, Format::Trusted));
}

/// SEMANTICS O1, O2, O3, O5, O6, O7
#[test]
fn every_stack_of_two_layers_agrees_with_the_kernel() {
    with_scratch(|scratch| agrees(scratch, 2, &PLAIN, Format::Trusted));
}

/// SEMANTICS O1, O2, O3, O5, O6, O7
#[test]
fn every_stack_of_three_layers_agrees_with_the_kernel() {
    with_scratch(|scratch| agrees(scratch, 3, &PLAIN, Format::Trusted));
}

/// SEMANTICS O3, O4, O8
#[test]
fn every_pair_of_anything_agrees_with_the_kernel() {
    with_scratch(|scratch| agrees(scratch, 2, &ALL, Format::Trusted));
}

/// SEMANTICS O3, O4, O8
#[test]
fn every_pair_of_anything_agrees_with_the_kernel_with_user_marks() {
    with_scratch(|scratch| agrees(scratch, 2, &ALL, Format::User));
}

/// SEMANTICS O11
#[test]
fn many_layers_agree_with_the_kernel() {
    with_scratch(|scratch| {
        let layers = Layers::new(scratch, "many", 128);
        for layer in 0..128 {
            Made::Directory.make(&layers.dir(layer).join("merged"), layer, Format::Trusted);
            Made::File.make(
                &layers.dir(layer).join(format!("only-{layer}")),
                layer,
                Format::Trusted,
            );
            Made::File.make(&layers.dir(layer).join("every"), layer, Format::Trusted);
        }
        let kernel = read(layers.kernel(Format::Trusted).path(), &[]);
        assert!(kernel.len() > 3 * 128);
        assert_same(&kernel, &of_engine(&layers.overlay(Format::Trusted), &[]));
        assert_same(&kernel, &read(layers.served(Format::Trusted).path(), &[]));
    });
}
