//go:build cloud

package objectstore

import (
	"cloud.google.com/go/storage"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	azblob "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"gocloud.dev/blob"
	_ "gocloud.dev/blob/azureblob" // azblob://
	_ "gocloud.dev/blob/gcsblob"   // gs://
	_ "gocloud.dev/blob/s3blob"    // s3://
)

func init() { pins = append(pins, pinS3, pinGCS, pinAzure) }

func pinS3(a *blob.Attributes, as func(any) bool) bool {
	var in *s3.GetObjectInput
	if a.ETag == "" || !as(&in) {
		return false
	}
	in.IfMatch = &a.ETag
	return true
}

func pinGCS(a *blob.Attributes, as func(any) bool) bool {
	var now storage.ObjectAttrs
	var handle **storage.ObjectHandle
	if !a.As(&now) || !as(&handle) {
		return false
	}
	*handle = (*handle).Generation(now.Generation)
	return true
}

func pinAzure(a *blob.Attributes, as func(any) bool) bool {
	var in *azblob.DownloadStreamOptions
	if a.ETag == "" || !as(&in) {
		return false
	}
	tag := azcore.ETag(a.ETag)
	in.AccessConditions = &azblob.AccessConditions{ModifiedAccessConditions: &azblob.ModifiedAccessConditions{IfMatch: &tag}}
	return true
}
