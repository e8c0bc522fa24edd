package experiment

import (
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// Each block is a permutation; pairs of blocks are reverses, so that positions
// sum up to the same for every cell; whole squares balance positions and
// neighbours. One seed gives one order, and more blocks only add to it.
func TestOrderIsBalanced(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cells := rapid.IntRange(1, 9).Draw(t, "cells")
		blocks := rapid.IntRange(1, 40).Draw(t, "blocks")
		seed := rapid.Uint64().Draw(t, "seed")
		order := Order(cells, blocks, seed)
		if len(order) != blocks {
			t.Fatalf("%d blocks, want %d", len(order), blocks)
		}
		for i, row := range order {
			sorted := slices.Sorted(slices.Values(row))
			for k, c := range sorted {
				if k != c || len(row) != cells {
					t.Fatalf("block %d is %v: not a permutation of %d", i, row, cells)
				}
			}
			if i%2 == 1 {
				back := slices.Clone(order[i-1])
				slices.Reverse(back)
				if !slices.Equal(back, row) {
					t.Fatalf("block %d is %v, want the reverse of %v", i, row, order[i-1])
				}
			}
		}
		square := cells
		if cells%2 == 1 {
			square = 2 * cells
		}
		for from := 0; from+square <= blocks; from += square {
			at := map[[2]int]int{}    // cell and position
			after := map[[2]int]int{} // cell and the one before it
			for _, row := range order[from : from+square] {
				for k, c := range row {
					at[[2]int{c, k}]++
					if k > 0 {
						after[[2]int{row[k-1], c}]++
					}
				}
			}
			for a := range cells {
				for b := range cells {
					if n := at[[2]int{a, b}]; n != square/cells {
						t.Fatalf("cell %d is at position %d in %d of %d blocks", a, b, n, square)
					}
					if n := after[[2]int{a, b}]; a != b && n != square/cells {
						t.Fatalf("cell %d comes right after %d in %d of %d blocks, want %d", b, a, n, square, square/cells)
					}
				}
			}
		}
		if again := Order(cells, blocks, seed); !reflect.DeepEqual(order, again) {
			t.Fatal("one seed gave two orders")
		}
		if more := Order(cells, blocks+5, seed); !reflect.DeepEqual(order, more[:blocks]) {
			t.Fatal("more blocks changed the first ones")
		}
	})
}

// Two cells are ABBA, and the seed decides who is A.
func TestOrderOfTwo(t *testing.T) {
	first := map[int]int{}
	for seed := range uint64(200) {
		o := Order(2, 4, seed)
		if o[0][0] != o[1][1] || o[0][1] != o[1][0] {
			t.Fatalf("seed %d: %v is not ABBA", seed, o)
		}
		first[o[0][0]]++
	}
	if first[0] < 60 || first[1] < 60 {
		t.Errorf("cell 0 begins %d times of 200, cell 1 %d times", first[0], first[1])
	}
	if Order(0, 3, 1) != nil || Order(3, 0, 1) != nil {
		t.Error("nothing has an order")
	}
}
